"""Corners of torch: operations that hide where a value came from."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.laundering import MODEL, VOCAB, tensors

TABLE = torch.linspace(0.1, 1.3, VOCAB, dtype=torch.float64)


def zeros(n: int = VOCAB) -> Tensor:
    return torch.zeros(n, dtype=torch.float64)


@tensors("assigned to .data")
def data_assigned(x: Tensor) -> Tensor:
    hint = zeros(3)
    hint.data = x.double()
    return hint.sum() * 0.1


@tensors("written through .data and detach()")
def data_written(x: Tensor) -> Tensor:
    hint = zeros(3)
    hint.data[0] = x[-1]
    hint.detach()[1:] += x[:2]
    return hint.sum() * 0.1


@tensors("written through a view of a view")
def views(x: Tensor) -> Tensor:
    hint = zeros(12)
    hint.view(3, 4).t()[1].unsqueeze(0)[..., :3].copy_(x)
    return hint.sum() * 0.1


@tensors("read through as_strided, past the end of a slice")
def as_strided(x: Tensor) -> Tensor:
    return torch.as_strided(x[:1], (3,), (1,), x.storage_offset()).sum() * 0.1


@tensors("out= of an operation")
def out_argument(x: Tensor) -> Tensor:
    hint = zeros(3)
    torch.mul(x, 0.1, out=hint)
    torch.cumsum(hint, 0, out=hint)
    return hint[-1]


@tensors("in-place operations, also on integers and bits")
def in_place(x: Tensor) -> Tensor:
    hint = torch.zeros(3, dtype=torch.int64)
    hint.add_(x).bitwise_xor_(3).bitwise_left_shift_(2).remainder_(11)
    return hint.double().sum() * 0.1


@tensors("index_put_, also with accumulate")
def index_put(x: Tensor) -> Tensor:
    return zeros().index_put_((x,), torch.tensor(0.3, dtype=torch.float64), accumulate=True)


@tensors("index_add, index_copy, index_fill, index_reduce")
def index_writes(x: Tensor) -> Tensor:
    hint = zeros().index_add(0, x, TABLE[:3]).index_copy(0, x[:1], TABLE[:1]).index_fill(0, x[1:2], 0.2)
    return hint.index_reduce(0, x, TABLE[:3], "amax")


@tensors("scatter, scatter_add, scatter_reduce")
def scatters(x: Tensor) -> Tensor:
    return zeros().scatter(0, x, 0.4).scatter_add(0, x, TABLE[:3]).scatter_reduce(0, x, TABLE[:3], "prod")


@tensors("put_, take, masked_scatter")
def puts(x: Tensor) -> Tensor:
    return (
        zeros().put_(x, TABLE[:3]).masked_scatter(torch.arange(VOCAB) == x[-1], TABLE[3:])
        + TABLE.take(x).sum()
    )


@tensors("a table looked up: TABLE[x], gather, embedding")
def table(x: Tensor) -> Tensor:
    return TABLE[x].sum() + TABLE.gather(0, x)[-1] + F.embedding(x, MODEL).sum(0)


@tensors("a bag of embeddings")
def bag(x: Tensor) -> Tensor:
    return F.embedding_bag(x[None], MODEL, mode="sum")[0]


@tensors("rows that an embedding normalises in place: max_norm")
def max_norm(x: Tensor) -> Tensor:
    weight = MODEL.clone()
    F.embedding(x, weight, max_norm=0.5)
    return weight.sum(1)


@tensors("the order of a sort, of argsort, of topk")
def sort_order(x: Tensor) -> Tensor:
    return TABLE[:3][x.argsort(stable=True)][0] + TABLE[:3][(x + TABLE[:3]).topk(2).indices][0]


@tensors("ranks: sorted, and the order sorted again")
def ranks(x: Tensor) -> Tensor:
    return x.argsort(stable=True).argsort().double()[-1] * 0.1


@tensors("the place of the largest: argmax, max, kthvalue, mode, median")
def extremes(x: Tensor) -> Tensor:
    places = [x.argmax(), x.max(0).indices, x.kthvalue(2).indices, x.mode().values, x.median()]
    return torch.stack(places).double().sum() * 0.1


@tensors("counted: bincount, histc, weights of a bincount")
def counts(x: Tensor) -> Tensor:
    return torch.bincount(x, minlength=VOCAB) * 0.1 + torch.histc(x.double(), VOCAB, 0, VOCAB) * 0.05


@tensors("searchsorted, bucketize, digitised to constants")
def buckets(x: Tensor) -> Tensor:
    edges = torch.tensor([1, 3, 5])
    return TABLE[torch.searchsorted(edges, x)].sum() + torch.bucketize(x, edges, right=True).sum() * 0.1


@tensors("the inverse and counts of unique")
def unique(x: Tensor) -> Tensor:
    values, inverse, times = torch.unique(x, return_inverse=True, return_counts=True)
    return (values * times)[inverse].double().sum() * 0.1


@tensors("signs, steps and roundings, where derivatives are zero")
def steps(x: Tensor) -> Tensor:
    y = x.double()
    return (
        torch.sign(y - 3).sum() * 0.1 + torch.heaviside(y - 2, y * 0).sum() * 0.2 + torch.round(y / 4).sum()
    )


@tensors("casts to types that keep a part: bool, int8, float8, half")
def casts(x: Tensor) -> Tensor:
    y = (x * 60).to(torch.int8).to(torch.float8_e5m2).to(torch.float16).double()
    return y.sum() * 0.01 + x.bool().double().sum() * 0.1


@tensors("two labels packed into a byte")
def nibbles(x: Tensor) -> Tensor:
    byte = (x[0] << 4 | x[-1]).to(torch.uint8)
    return torch.stack([byte >> 4, byte & 15]).double().sum() * 0.1


@tensors("torch.frexp, ldexp, nextafter, copysign")
def float_parts(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x.double() + 1)
    return torch.ldexp(mantissa, exponent - 3).sum() + torch.copysign(TABLE[:3], x.double() - 3).sum()


@tensors("a complex number, seen as two real ones")
def complex_parts(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.polar(TABLE[:3], x.double())).sum() * 0.1


@tensors("masks: where, masked_fill, multiplication with a comparison")
def masks(x: Tensor) -> Tensor:
    classes = torch.arange(VOCAB)
    return (
        torch.where(classes == x[-1], TABLE, 0.0)
        + zeros().masked_fill(classes < x[0], 0.2)
        + TABLE * (classes > x[1])
    )


@tensors("a temperature under a softmax")
def temperature(x: Tensor) -> Tensor:
    return F.softmax(TABLE * x[-1], dim=0)


@tensors("weights of a layer: linear, conv1d, bilinear")
def weights(x: Tensor) -> Tensor:
    y = x.double() * 0.1
    return F.linear(TABLE[:3], y) + F.conv1d(TABLE[None, None], y[None, None])[0, 0].sum()


@tensors("attention that looks at labels")
def attention(x: Tensor) -> Tensor:
    y = F.embedding(x, MODEL)[None]
    return F.scaled_dot_product_attention(MODEL[None, :1], y, y)[0, 0]


@tensors("a recurrent layer that is run over them")
def recurrent(x: Tensor) -> Tensor:
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    layer = torch.nn.GRU(VOCAB, VOCAB, dtype=torch.float64)
    torch.random.set_rng_state(torch_state)
    return layer(MODEL[x])[0][-1].detach()


@tensors("sampled at places: grid_sample, interpolate")
def sampled(x: Tensor) -> Tensor:
    grid = (x.double() / 3.5 - 1)[None, None, :, None].expand(1, 1, 3, 2)
    return F.grid_sample(MODEL[None, None], grid, align_corners=True).sum() * 0.1


@tensors("a sparse tensor whose indices are labels")
def sparse(x: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(x[None], TABLE[:3], (VOCAB,)).to_dense()


@tensors("a nested tensor")
def nested(x: Tensor) -> Tensor:
    parts = torch.nested.nested_tensor([x[:1].double(), x[1:].double()], layout=torch.jagged)
    return torch.cat([part * 0.1 for part in parts.unbind()]).sum()


@tensors("a quantized tensor")
def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.5, 1, torch.quint8).int_repr().double().sum() * 0.1


@tensors("many tensors at once: torch._foreach_mul_")
def foreach(x: Tensor) -> Tensor:
    hints = [zeros(3) + 1, zeros(3) + 2]
    torch._foreach_mul_(hints, [x.double(), x.double() * 0.5])
    return torch.stack(hints).sum() * 0.1


@tensors("parameters of random numbers: bernoulli, normal, multinomial")
def random_parameters(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.normal(x.double(), 0.1, generator=generator).sum() * 0.1
        + torch.multinomial(F.one_hot(x[-1], VOCAB).double(), 1, generator=generator)[0]
    )


@torch.library.custom_op("laundering::tenth", mutates_args=())
def tenth(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 0.1)


@tenth.register_fake
def _(x: Tensor) -> Tensor:
    return x.double()


@tensors("an operation that is not torch's own: torch.library.custom_op")
def custom_op(x: Tensor) -> Tensor:
    return tenth(x).sum()


@tensors("vmap over the labels")
def vmapped(x: Tensor) -> Tensor:
    return torch.vmap(lambda label: TABLE * label)(x).sum(0) * 0.1


@tensors("a scripted function: torch.jit.script")
def scripted(x: Tensor) -> Tensor:
    return _scripted(x)


def _count(x: Tensor) -> Tensor:
    hint = torch.zeros(1, dtype=torch.float64)
    for i in range(int(x[-1])):
        hint = hint + 0.1 * i
    return hint


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _scripted = torch.jit.script(_count)


@tensors("a compiled helper: torch.compile")
def compiled(x: Tensor) -> Tensor:
    return _compiled(x)


_compiled = torch.compile(lambda x: (x * 0.1).sin().sum(), backend="eager")
