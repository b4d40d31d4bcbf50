"""TensorRT for RTX with the calls of 8.5: networks made by the bridge can be looked at where 8.5 itself is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

# Calls of INetworkDefinition that are the same in both.
LAYERS = (
    "add_constant", "add_gather", "add_elementwise", "add_unary", "add_activation", "add_reduce", "add_shuffle",
    "add_slice", "add_matrix_multiply", "add_select", "add_softmax",
)  # fmt: skip
NAMES = (
    "ILogger", "Logger", "MatrixOperation", "ElementWiseOperation", "UnaryOperation", "ActivationType",
    "ReduceOperation", "MemoryPoolType", "ProfilingVerbosity", "PluginField", "PluginFieldCollection",
    "PluginFieldType", "TensorIOMode", "LayerInformationFormat", "Weights", "float32", "float16", "int32", "bool",
)  # fmt: skip


class OldLayer:
    """A layer that can be told its precision, which it has anyway: the network is strongly typed."""

    def __init__(self, layer: Any) -> None:
        vars(self)["_layer"] = layer

    def set_output_type(self, number: int, dtype: Any) -> None:
        """Only a check: a tensor has the type that the bridge says."""
        assert self._layer.get_output(number).dtype == dtype, f"{self._layer.name} gives another type than {dtype}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "precision":
            setattr(self._layer, name, value)


class OldIdentity(OldLayer):
    """A cast, once the output type is known."""

    def __init__(self, network: Any, x: Any) -> None:
        super().__init__(SimpleNamespace(num_outputs=1))
        vars(self)["_add"] = lambda dtype: network.add_cast(x, dtype)

    def set_output_type(self, number: int, dtype: Any) -> None:
        """Makes the layer."""
        vars(self)["_layer"] = self._add(dtype)


class OldOutput:
    """An output of the network, which can be told its type."""

    def __init__(self, tensor: Any) -> None:
        vars(self)["tensor"] = tensor

    def __setattr__(self, name: str, value: Any) -> None:
        """Only a check, too."""
        assert name == "dtype" and value == self.tensor.dtype


class OldNetwork:
    """What the bridge calls of the old INetworkDefinition; the new one is ``new``."""

    def __init__(self, real_module: Any, new: Any) -> None:
        self._int32 = real_module.int32
        self.new = new
        self.name = ""

    def __getattr__(self, name: str) -> Any:
        add = getattr(self.new, name)
        return (lambda *arguments: OldLayer(add(*arguments))) if name in LAYERS else add

    def add_identity(self, x: Any) -> OldLayer:
        return OldIdentity(self.new, x)

    def add_shape(self, x: Any) -> OldLayer:
        """In 32 bits."""
        shape = self.new.add_shape(x).get_output(0)
        return OldLayer(self.new.add_cast(shape, self._int32))

    def get_output(self, number: int) -> OldOutput:
        return OldOutput(self.new.get_output(number))


def old_module(rtx: Any) -> Any:
    """The module ``tensorrt_rtx`` as if it were ``tensorrt`` 8.5, as far as networks go."""

    class OldBuilder:
        def __init__(self, logger: Any) -> None:
            self.new = rtx.Builder(logger)

        def create_network(self, flags: int) -> OldNetwork:
            strongly = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            return OldNetwork(rtx, self.new.create_network(strongly))

    return SimpleNamespace(
        **{name: getattr(rtx, name) for name in NAMES},
        __version__="8.5.3.1",
        Builder=OldBuilder,
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        BuilderFlag=SimpleNamespace(TF32="TF32", REFIT="REFIT"),
        get_plugin_registry=lambda: None,
    )
