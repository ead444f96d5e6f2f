"""What is trained: the transformer and, where it learns along, the text encoder."""

from dataclasses import replace

import torch.distributed as dist
from torch import Tensor, nn

from diffmoe_scale.encoders.text.features import TextFeatures
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.transformer import DiffusionTransformer, Prediction
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.modulation import ModulationTable


class Denoiser(nn.Module):
    """Noisy images and a condition to a Prediction. `text_encoder` is None in class mode and where all
    encoders are frozen and encode before; `trained_stream` is the place of its stream among all."""

    def __init__(
        self,
        transformer: DiffusionTransformer,
        text_encoder: TrainedTextEncoder | None,
        *,
        trained_stream: int = 0,
    ) -> None:
        super().__init__()
        self.trained_stream = trained_stream
        self.transformer = transformer
        self.text_encoder = text_encoder

    def moe_layers(self) -> list[MoELayer]:
        return self.transformer.moe_layers()

    def canonical_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of this rank by the names that checkpoints use: a module's own, but
        `LAYER.experts.<global index>.<w_in, b_in, w_out, b_out>` for experts, whatever the backend and the
        layout of ranks."""
        names = {id(layer): prefix for prefix, layer in self.named_modules()}
        experts = {
            id(parameter): f"{names[id(layer)]}.{name}"
            for layer in self.moe_layers()
            for name, parameter in layer.expert_parameters()
        }
        return {experts.get(id(parameter), name): parameter for name, parameter in self.named_parameters()}

    def embeddings(self) -> list[nn.Parameter]:
        """Tables of vectors by number: tokens, positions, classes, and those of a shared modulation. Weight
        decay leaves them out."""
        tables = []
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                tables.append(module.get_parameter("weight"))
            elif isinstance(module, ModulationTable):
                tables.append(module.table_CD)
        return tables if self.text_encoder is None else [*tables, self.text_encoder.position_LT]

    def canonical_buffers(self) -> dict[str, Tensor]:
        """What is state but no weight: the experts' thresholds and their counts of updates."""
        state = self.state_dict(keep_vars=True)
        return {name: buffer for name, buffer in self.named_buffers() if name in state}

    def encode(self, condition: Condition) -> Condition:
        """The condition with its caption ids replaced by their features; samplers call it once for all their
        steps."""
        if self.text_encoder is None or condition.tokens_BL is None:
            return condition
        streams = list(condition.text.streams) if condition.text is not None else []
        streams.insert(self.trained_stream, self.text_encoder(condition.tokens_BL))
        return replace(condition, text=TextFeatures(tuple(streams)), tokens_BL=None)

    def forward(
        self,
        x_BCHW: Tensor,
        time_B: Tensor,
        condition: Condition,
        selection: Selection,
        sequence_group: dist.ProcessGroup | None = None,
    ) -> Prediction:
        """`time_B` is what the timestep embedding sees (`Objective.embedding_time`); `sequence_group` as of
        the transformer."""
        condition = self.encode(condition)
        prediction: Prediction = self.transformer(x_BCHW, time_B, condition, selection, sequence_group)
        return prediction
