"""Survey: section 3.1.  Policies that look at images and answer in words."""

from minivisrl.mllm.policy import VLMPolicy

__all__ = ["VLMPolicy"]
