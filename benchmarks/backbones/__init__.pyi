from .measure import domain_net as domain_net
from .measure import random_switches as random_switches
