from sam2kit.data.doctor.report import Examination as Examination
from sam2kit.data.doctor.report import run_doctor as run_doctor
