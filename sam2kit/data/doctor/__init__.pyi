from .report import Examination as Examination
from .report import run_doctor as run_doctor
