"""A model of diffusers that is loaded with all its weights or not at all."""

from typing import Any  # what diffusers passes on

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class CheckedModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers carries no types
    """diffusers warns only: it leaves random numbers in the place of missing weights, and passes over those
    that it has no place for."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Raises: ValueError naming weights that are missing or left over."""
        folder, output_loading_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        model, found = loaded
        for kind, what in (("missing_keys", "lacks"), ("unexpected_keys", "has no place for")):
            if names := sorted(found[kind]):
                raise ValueError(f"{folder}: {cls.__name__} {what} {len(names)} weights, such as {names[0]}")
        return (model, found) if output_loading_info else model
