"""State: one small class per kind of variable."""

from xir_tfrs.layers.candidate_cache import CandidateCache
from xir_tfrs.layers.candidate_table import CandidateTable

__all__ = ["CandidateCache", "CandidateTable"]
