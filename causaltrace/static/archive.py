"""Reading a ``.pt2`` file without running anything in it.

``torch.export.load`` unpickles weights and sample inputs and evaluates expressions, so that a file can run
code. This reader takes the graph from its JSON, operations by name from torch's own, and the raw bytes of
constants; what else a file holds (pickles, compiled code, functions) is left alone or refused.
"""

from __future__ import annotations

import json
import operator
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from causaltrace._compat import serialized
from causaltrace.static.bodies import BODIES, calls_bodies
from causaltrace.static.errors import AuditError
from causaltrace.static.exported import Exported, Given, Program, example
from causaltrace.static.sizes import Range, Size

#: Python's functions on numbers and lists that graphs use.
PYTHON = (
    "getitem",
    "add",
    "sub",
    "mul",
    "floordiv",
    "mod",
    "neg",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "truediv",
)
#: Operations that reach outside the graph.
OUTSIDE = ("from_file", "set_data", "save", "load")
REMEDY = "export the model again with this version of torch, or audit the module itself"


def load(path: str | Path) -> Exported:
    """The graph and the constants of a file that ``torch.export.save`` made.

    Raises:
        AuditError: it is no such file, it is damaged, or it holds what only its own code could run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except AuditError:
        raise
    except OSError as error:
        raise AuditError(f"cannot read {path}: {error.strerror or error}", remedy=REMEDY) from error
    except (
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RuntimeError,
    ) as error:
        raise AuditError(f"{path} is no .pt2 file that can be read ({error})", remedy=REMEDY) from error


def _read(archive: zipfile.ZipFile) -> Exported:
    names = archive.namelist()
    models = [n for n in names if "/models/" in f"/{n}" and n.endswith(".json")]
    if len(models) != 1:
        raise AuditError(f"the file holds {len(models)} exported programs, not one", remedy=REMEDY)
    program = json.loads(archive.read(models[0]))
    module = program["graph_module"]
    graph = module["graph"]
    made = _Graph(graph)
    constants = dict(_constants(archive, names))
    inputs = [_given(spec, graph, constants) for spec in module["signature"]["input_specs"]]
    user = [
        i for i, spec in enumerate(module["signature"]["output_specs"]) if next(iter(spec)) == "user_output"
    ]
    ranges = {name: _range(name, r) for name, r in (program.get("range_constraints") or {}).items()}
    guards = [str(text) for text in program.get("guards_code") or []]
    keys = _keys(module, len(user))
    return Exported(made.program(), inputs, user, keys, ranges=ranges, guards=guards)


class _Graph:
    """An fx graph from its JSON."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self._inner: dict[str, Program] = {}
        if data.get("custom_obj_values"):
            raise AuditError("the program holds objects of classes of its own", remedy=REMEDY)
        for argument in data["inputs"]:
            name = _name(argument)
            self.nodes[name] = self.graph.placeholder(name)
        for node in data["nodes"]:
            self._node(node)
        results = tuple(self._value(a) for a in data["outputs"])
        self.graph.output(results[0] if data.get("is_single_tensor_return") else results)

    def program(self) -> Program:
        return Program(self.graph, self._inner)

    def _node(self, data: dict[str, Any]) -> None:
        target = _target(data["target"])
        named = [(a["name"], self._value(a["arg"]), a.get("kind") == 2) for a in data["inputs"]]
        args = tuple(v for _, v, keyword in named if not keyword)
        kwargs = {n: v for n, v, keyword in named if keyword}
        bodies = tuple(i for i, v in enumerate(args) if isinstance(v, fx.Node) and v.op == "get_attr")
        if bodies != (BODIES[target.name()] if calls_bodies(target) else ()):
            raise AuditError(f"{data['target']} is given other functions than it takes", remedy=REMEDY)
        node = self.graph.create_node("call_function", target, args, kwargs, data.get("name"))
        metadata = data.get("metadata", {})
        node.meta = {k: str(metadata[k]) for k in ("stack_trace", "nn_module_stack") if metadata.get(k)}
        outputs = data["outputs"]
        one = len(outputs) == 1 and "as_tensors" not in outputs[0]
        if one and not (calls_bodies(target) and not data["is_hop_single_tensor_return"]):
            if next(iter(outputs[0])) != "as_none":
                self.nodes[_name(outputs[0])] = node
            return
        listed = outputs[0].get("as_tensors", outputs) if len(outputs) == 1 else outputs
        for i, out in enumerate(listed):
            name = _name(out) if "name" not in out else out["name"]
            if name:
                self.nodes[name] = self.graph.call_function(operator.getitem, (node, i))

    def _value(self, argument: dict[str, Any]) -> Any:
        """The value, or the node, that an argument stands for."""
        kind, value = next(iter(argument.items()))
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_optional_tensor"):
            inner = value.get("as_tensor", value)
            return self.nodes[inner["name"]] if "name" in inner else None
        if kind == "as_tensors":
            return [self.nodes[v["name"]] for v in value]
        if kind == "as_optional_tensors":
            return [self._value(v) for v in value]
        if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._symbol(value)
        if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return [self._symbol(v) for v in value]
        if kind in ("as_int", "as_float", "as_bool", "as_string"):
            return value
        if kind in ("as_ints", "as_floats", "as_bools", "as_strings", "as_int_lists", "as_float_lists"):
            return list(value)
        if kind == "as_device":
            return torch.device("cpu")
        if kind in ("as_scalar_type", "as_layout", "as_memory_format"):
            return serialized(kind)[value]
        if kind == "as_graph":
            name = f"body_{len(self._inner)}"  # and not the one in the file
            self._inner[name] = _Graph(value["graph"]).program()
            return self.graph.get_attr(name)
        raise AuditError(f"the program calls a function of its own ({kind})", remedy=REMEDY)

    def _symbol(self, value: dict[str, Any]) -> Any:
        kind, inner = next(iter(value.items()))
        return self.nodes[inner] if kind == "as_name" else inner


def _name(argument: dict[str, Any]) -> str:
    kind, value = next(iter(argument.items()))
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return str(value["as_name"])
    if kind in ("as_int", "as_float", "as_bool", "as_string", "as_none"):
        raise AuditError("the program has an input or a result that is no tensor", remedy=REMEDY)
    return str(value.get("as_tensor", value).get("name", ""))


def _target(name: str) -> Any:
    """An operation of torch's, or arithmetic of Python's, by name; nothing else."""
    parts = name.split(".")
    if parts[0] == "_operator" and len(parts) == 2 and parts[1] in PYTHON:
        return getattr(operator, parts[1])
    if name in ("torch.sym_max", "torch.sym_min", "torch.sym_not"):
        return getattr(torch, parts[1])
    if parts[:3] == ["torch", "ops", "higher_order"] and parts[3:] in [[n] for n in BODIES]:
        return getattr(torch.ops.higher_order, parts[3])
    if parts[:2] == ["torch", "ops"] and len(parts) == 5 and parts[3] not in OUTSIDE:
        found: Any = getattr(getattr(getattr(torch.ops, parts[2]), parts[3], None), parts[4], None)
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise AuditError(f"the program calls {name}, which is no operation of this torch", remedy=REMEDY)


def _size(value: dict[str, Any]) -> Size:
    kind, inner = next(iter(value.items()))
    if kind == "as_int":
        return Size(int(inner))
    hint = (inner.get("hint") or {}).get("as_int")
    if hint is None:
        raise AuditError("the program has a size that is not known: give example inputs", remedy=REMEDY)
    return Size.read(int(hint), str(inner["expr_str"]))


def _range(name: str, bounds: dict[str, Any]) -> Range:
    """The least and the greatest value of a symbol."""
    low, high = (bounds.get(b) if isinstance(bounds, dict) else "?" for b in ("min_val", "max_val"))
    whole = all(n is None or type(n) is int for n in (low, high))
    if not whole or low is not None and high is not None and low > high:
        raise AuditError(f"{bounds} is no range of sizes, which {name} should have", remedy=REMEDY)
    return low, high


def _given(spec: dict[str, Any], graph: dict[str, Any], constants: dict[str, Tensor]) -> Given:
    kind, value = next(iter(spec.items()))
    argument = value["arg"]
    if kind == "user_input":
        form, inner = next(iter(argument.items()))
        if form == "as_tensor":
            return _tensor(kind, inner["name"], graph)
        if form == "as_sym_int" and "as_name" in inner:
            size = _size(graph["sym_int_values"][inner["as_name"]])
            return Given(kind, inner["as_name"], size.hint, size)
        return Given(kind, "", inner)
    if kind not in ("parameter", "buffer", "tensor_constant"):
        raise AuditError(f"the program takes a {kind} of its own", remedy=REMEDY)
    fqn = value[f"{kind}_name"]
    known = constants.get(fqn) if kind != "parameter" else None
    return _tensor(kind, argument["name"], graph) if known is None else Given(kind, argument["name"], known)


def _tensor(kind: str, name: str, graph: dict[str, Any]) -> Given:
    meta = graph["tensor_values"][name]
    size = tuple(_size(n) for n in meta["sizes"])
    return Given(kind, name, example(size, serialized("as_scalar_type")[meta["dtype"]]), size)


def _constants(archive: zipfile.ZipFile, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Buffers and constants whose bytes are there as they are."""
    for config in (n for n in names if n.endswith(("_weights_config.json", "_constants_config.json"))):
        folder = config.rpartition("/")[0]
        for fqn, entry in json.loads(archive.read(config))["config"].items():
            meta = entry.get("tensor_meta")
            if entry.get("is_param") or entry.get("use_pickle") or meta is None:
                continue
            data = bytearray(archive.read(f"{folder}/{entry['path_name']}"))
            dtype = serialized("as_scalar_type")[meta["dtype"]]
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            sizes, strides = [_size(n).hint for n in meta["sizes"]], [_size(n).hint for n in meta["strides"]]
            yield fqn, flat.as_strided(sizes, strides, _size(meta["storage_offset"]).hint).clone()


def _keys(module: dict[str, Any], count: int) -> list[str] | None:
    """Names of the outputs, where the program returns a dict of tensors."""
    for call in module.get("module_call_graph") or []:
        if call.get("fqn") == "" and call.get("signature"):
            spec = json.loads(call["signature"]["out_spec"])[1]
            keys = json.loads(spec["context"] or "null") if spec["type"] == "builtins.dict" else None
            if isinstance(keys, list) and len(keys) == count:
                return [str(k) for k in keys]
    return None
