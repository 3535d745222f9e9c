from .http.app import create_app as create_app
from .options import Limits as Limits
from .options import LoadOptions as LoadOptions
from .options import ServeOptions as ServeOptions
from .server import serve as serve
from .server import serve_with as serve_with
