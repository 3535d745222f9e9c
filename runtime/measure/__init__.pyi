from .benchmark import bench as bench
from .benchmark import format_report as format_report
from .doctor import answers_here as answers_here
from .doctor import examine as examine
from .profile import measure_profile as measure_profile
from .profile import profile_bundle as profile_bundle
from .profile import profile_lines as profile_lines
from .profile import profile_warning as profile_warning
