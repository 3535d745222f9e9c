from .add_domain import add_domain_pack as add_domain_pack
from .export import export_bundle as export_bundle
from .packs import export_pack as export_pack
from .packs import graph_trunk_hash as graph_trunk_hash
from .whole import export_untrained as export_untrained
from .whole import untrained_bundle as untrained_bundle
from .whole import write_unpruned as write_unpruned
from .whole import write_unpruned_of as write_unpruned_of
