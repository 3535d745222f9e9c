from .changes import changed_keys as changed_keys
from .changes import changed_paths as changed_paths
from .changes import lacks_shape as lacks_shape
from .changes import todays_config as todays_config
from .run_copy import keep_run_file as keep_run_file
