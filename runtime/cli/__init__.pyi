from .benchmark import bench as bench
from .main import cli as cli
from .options import as_json as as_json
from .options import bundle_argument as bundle_argument
from .options import echo_json as echo_json
from .options import force as force
from .options import precisions as precisions
