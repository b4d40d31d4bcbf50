"""Our plugins for TensorRT 8.5, called as that library calls them: by place in a table."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from d3llm_trt.plugins.library import KERNELS
from tests.support.plugin_libraries import plugin_libraries, tensorrt85_plugins

Word = ctypes.c_void_p
# Places in the tables of functions of 8.5.3.
VERSION, NAME = 0, 1
CREATE, RESTORE = 4, 5
NUM_OUTPUTS, SERIALIZED_SIZE, SERIALIZE, DESTROY, CLONE, OUTPUT_TYPE = 3, 11, 12, 13, 14, 19
INT32 = 5  # of PluginFieldType
HEADS = {b"num_heads": 4, b"num_kv_heads": 2, b"head_dim": 64}


class Field(ctypes.Structure):
    """A PluginField."""

    _fields_ = (("name", ctypes.c_char_p), ("data", Word), ("type", ctypes.c_int32), ("length", ctypes.c_int32))


class Fields(ctypes.Structure):
    """A PluginFieldCollection."""

    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


def call(target: int, place: int, result: Any, *arguments: Any) -> Any:
    """Call a function of an object's table."""
    table = ctypes.cast(ctypes.cast(target, ctypes.POINTER(Word))[0], ctypes.POINTER(Word))
    kinds = [type(argument) for argument in arguments]
    return ctypes.CFUNCTYPE(result, Word, *kinds)(table[place])(target, *arguments)


@pytest.fixture(scope="module")
def creators() -> dict[bytes, int]:
    """The creators that the library gives to a registry, by name."""
    ctypes.CDLL(str(plugin_libraries().library.with_name(KERNELS)))
    library = ctypes.CDLL(str(tensorrt85_plugins()))
    added: list[int] = []

    @ctypes.CFUNCTYPE(ctypes.c_bool, Word, Word, ctypes.c_char_p)
    def add(registry: int, creator: int, namespace: bytes) -> bool:
        added.append(creator)
        return True

    table = (Word * 1)(ctypes.cast(add, Word))
    registry = (Word * 1)(ctypes.cast(table, Word))
    assert library.d3llm_register_creators(registry)
    return {call(creator, NAME, ctypes.c_char_p): creator for creator in added}


def attention(creator: int, heads: dict[bytes, int]) -> int | None:
    """The plugin that the creator makes of these fields."""
    values = [ctypes.c_int32(value) for value in heads.values()]
    listed = zip(heads, values, strict=True)
    fields = (Field * len(values))(*(Field(name, ctypes.addressof(value), INT32, 1) for name, value in listed))
    collection = ctypes.pointer(Fields(len(values), fields))
    made: int | None = call(creator, CREATE, Word, ctypes.c_char_p(b"layers.0.attention"), collection)
    return made


def test_both_plugins_are_registered(creators: dict[bytes, int]) -> None:
    assert set(creators) == {b"D3llmBidirectionalAttention", b"D3llmCopy"}
    assert {call(creator, VERSION, ctypes.c_int32) for creator in creators.values()} == {8503}


def test_attention_is_made_saved_restored_and_cloned(creators: dict[bytes, int]) -> None:
    creator = creators[b"D3llmBidirectionalAttention"]
    plugin = attention(creator, HEADS)
    assert plugin is not None
    assert call(plugin, VERSION, ctypes.c_int32) == 3 << 24 | 8503 and call(plugin, NUM_OUTPUTS, ctypes.c_int32) == 2
    saved = (ctypes.c_int32 * 3)()
    assert call(plugin, SERIALIZED_SIZE, ctypes.c_size_t) == ctypes.sizeof(saved)
    place = Word(ctypes.addressof(saved))
    call(plugin, SERIALIZE, None, place)
    assert list(saved) == [4, 2, 64]
    restored = call(creator, RESTORE, Word, ctypes.c_char_p(b"layers.0.attention"), place, ctypes.c_size_t(12))
    for other in (restored, call(plugin, CLONE, Word)):
        assert call(other, NAME, ctypes.c_char_p) == b"D3llmBidirectionalAttention"
        call(other, DESTROY, None)
    assert call(creator, RESTORE, Word, ctypes.c_char_p(b"a"), place, ctypes.c_size_t(8)) is None
    assert attention(creator, {**HEADS, b"num_kv_heads": 3}) is None


def test_the_copy_has_the_type_of_its_input(creators: dict[bytes, int]) -> None:
    plugin = call(creators[b"D3llmCopy"], CREATE, Word, ctypes.c_char_p(b"copy"), Word(None))
    for data_type in (0, 1):  # float32, float16
        given = ctypes.pointer(ctypes.c_int32(data_type))
        assert call(plugin, OUTPUT_TYPE, ctypes.c_int32, ctypes.c_int32(0), given, ctypes.c_int32(1)) == data_type
