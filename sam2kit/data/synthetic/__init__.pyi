from sam2kit.data.synthetic.dataset import CompositedDataset as CompositedDataset
from sam2kit.data.synthetic.dataset import SyntheticDataset as SyntheticDataset
