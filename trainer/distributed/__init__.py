"""The only package that talks to other processes.

Which rank this is (`environment`), collectives, batch norm over ranks, and the engines.
"""

from __future__ import annotations
