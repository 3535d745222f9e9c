from .commands import add_domain as add_domain
from .commands import export as export
from .commands import pack as pack
from .commands import verify as verify
from .helped import bench as bench
from .helped import check as check
from .helped import profile as profile
from .helped import train as train
