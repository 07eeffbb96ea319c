"""Floor 2, configuration: TOML -> plan, with every error at its file, line and column in one pass."""

from ha.config.check import Checked, check_files, check_paths, read_directory
from ha.config.cross import check_tenants
from ha.config.node import load_node_file
from ha.config.system import load_system
from ha.config.tenant import Loaded, load_tenant, read_tenant

__all__ = [
    "Checked",
    "Loaded",
    "check_files",
    "check_paths",
    "check_tenants",
    "load_node_file",
    "load_system",
    "load_tenant",
    "read_directory",
    "read_tenant",
]
