from .handed import Handed as Handed
from .handed import HandedSets as HandedSets
from .handed import open_dataset as open_dataset
from .huggingface import open_huggingface as open_huggingface
from .named import PARTS as PARTS
from .named import Part as Part
from .named import open_torchvision as open_torchvision
