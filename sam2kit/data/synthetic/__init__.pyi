from .dataset import CompositedDataset as CompositedDataset
from .dataset import SyntheticDataset as SyntheticDataset
