from .report import VerifyReport as VerifyReport
from .report import verify_bundle as verify_bundle
