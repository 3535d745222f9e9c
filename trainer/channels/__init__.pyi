from .units import GateSite as GateSite
from .units import Units as Units
from .units import find_units as find_units
from .walk import HANDLERS as HANDLERS
from .walk import LAYOUT as LAYOUT
