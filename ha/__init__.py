"""ha: a high-availability agent for multi-tenant call-management systems on two sides."""

__version__ = "0.1.0"
