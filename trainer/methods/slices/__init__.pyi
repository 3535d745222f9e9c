from .switches import SliceSwitches as SliceSwitches
