"""The rule table: one row an op (without its namespace, in its functional spelling).

In-place (``add_``), ``out=``, ``_foreach_`` and ``_fused_`` variants use the row of the op that they are
variants of; composites are decomposed; ops with ``torch.Tag.pointwise`` need no row; what is left goes to
the ``possible`` plane and is named in the report. S(x) is the support of x, ``|`` is join.

Kinds tell what an op does to values that were read out of a distribution (``tracer``):
MOVE keeps elements as they are, POINT computes element by element, LEAVE mixes elements, READ picks a class
by index, FREE depends on no tensor's value, VIEW shares its input's storage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from causaltrace.rules import (
    attention,
    bag,
    conv,
    encoder,
    fallback,
    index,
    jagged,
    linalg,
    loss,
    matmul,
    move,
    norm,
    numbered,
    optim,
    pointwise,
    pool,
    recurrent,
    reduce,
    resample,
    scatter,
    segment,
)
from causaltrace.rules.call import OpCall, Result

MOVE, POINT, LEAVE, READ, FREE, VIEW, OPAQUE = "move", "point", "leave", "read", "free", "view", "opaque"


class Rule(NamedTuple):
    """``fn(op)`` gives the supports of the outputs. ``source``: where a user registered it; ``reads``: the
    argument that its classes are read at."""

    kind: str
    fn: Callable[[OpCall], Result]
    source: str = ""
    reads: str = ""


def _rows(kind: str, fn: Callable[[OpCall], Result], names: str) -> dict[str, Rule]:
    return {name: Rule(kind, fn) for name in names.split()}


TABLE: dict[str, Rule] = {
    # -- views: the same storage, read through another geometry; shadow memory does the rest
    **_rows(VIEW, fallback.nothing, "_unsafe_view _reshape_alias lift lift_fresh detach alias "
            "record_stream set set_data resize t transpose squeeze unsqueeze swapaxes swapdims as_strided "
            "resize_as"),
    # -- out depends on no value
    **_rows(FREE, fallback.nothing, "zeros_like ones_like empty_like full_like rand_like randn_like "
            "randint_like new_zeros new_ones new_empty new_full new_empty_strided empty_strided empty "
            "empty_permuted _assert_async _assert_tensor_metadata _linalg_check_errors zero uniform "
            "exponential cauchy geometric log_normal random random_from random_to "
            "_record_function_enter_new _record_function_exit sym_size sym_numel sym_stride is_pinned "
            "_has_compatible_shallow_copy_type is_same_size arange full ones zeros rand randn randint "
            "randperm eye tril_indices triu_indices scalar_tensor _efficientzerotensor"),
    # numbers between two numbers, which may be tensors: S(start) | S(end), at the ends only one of them
    **_rows(LEAVE, reduce.spaced, "linspace logspace"),
    # -- movement: S(out) = S of the element that moved (| S(condition or index))
    **_rows(MOVE, move.same, "clone _to_copy _pin_memory _conj_physical"),
    **_rows(MOVE, move.copy, "copy _copy_from"),
    **_rows(MOVE, move.cat, "cat concat"),
    **_rows(MOVE, move.stack, "stack"),
    **_rows(MOVE, move.flip, "flip"),
    **_rows(MOVE, move.roll, "roll"),
    **_rows(MOVE, move.repeat, "repeat"),
    **_rows(MOVE, move.pad, "constant_pad_nd"),
    **_rows(MOVE, move.rearranged, "rot90 diag_embed diagonal_copy pixel_shuffle pixel_unshuffle "
            "channel_shuffle reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
            "replication_pad2d replication_pad3d unsafe_split unsafe_split_with_sizes split_copy "
            "split_with_sizes_copy unbind_copy select_copy slice_copy narrow_copy permute_copy "
            "transpose_copy t_copy view_copy expand_copy squeeze_copy unsqueeze_copy unfold_copy "
            "alias_copy detach_copy _reshape_copy im2col"),
    **_rows(MOVE, move.block_diag, "block_diag"),
    **_rows(MOVE, numbered.as_strided_copy, "as_strided_copy"),
    **_rows(MOVE, numbered.as_strided_scatter, "as_strided_scatter"),
    **_rows(MOVE, numbered.chunk_cat, "_chunk_cat"),
    **_rows(MOVE, numbered.pack_padded, "_pack_padded_sequence"),
    # rows of several lengths: S(offsets) | S of the row that moved
    **_rows(MOVE, jagged.to_padded, "_jagged_to_padded_dense_forward"),
    **_rows(MOVE, jagged.to_packed, "_padded_dense_to_jagged_forward"),
    **_rows(LEAVE, move.unfold_backward, "unfold_backward"),
    **_rows(MOVE, move.where, "where"),
    **_rows(MOVE, move.masked_fill, "masked_fill"),
    **_rows(MOVE, move.slice_backward, "slice_backward select_backward diagonal_backward"),
    **_rows(MOVE, move.slice_scatter, "slice_scatter select_scatter diagonal_scatter"),
    **_rows(MOVE, pointwise.tri, "tril triu"),
    # -- index reads: S(index) | S(element); readouts: S(row)
    **_rows(MOVE, index.index_select, "index_select"),
    **_rows(MOVE, index.masked_select, "masked_select"),
    **_rows(READ, index.gather, "gather"),
    **_rows(READ, index.index, "index _unsafe_index"),
    **_rows(LEAVE, index.embedding, "embedding"),
    # -- index writes: S(old) | S(new) | S(all indices that could have pointed there)
    **_rows(MOVE, scatter.index_put, "index_put _unsafe_index_put _index_put_impl"),
    **_rows(MOVE, scatter.scatter, "scatter"),
    **_rows(LEAVE, scatter.scatter, "scatter_add scatter_reduce"),
    **_rows(LEAVE, scatter.index_write, "index_add index_copy index_fill index_reduce"),
    **_rows(LEAVE, scatter.put, "put"),
    **_rows(LEAVE, scatter.bincount, "bincount"),
    **_rows(MOVE, scatter.masked_scatter, "masked_scatter"),
    **_rows(LEAVE, scatter.masked_scatter_backward, "masked_scatter_backward"),
    **_rows(LEAVE, index.take, "take"),
    **_rows(LEAVE, index.repeats, "repeat_interleave"),
    **_rows(LEAVE, scatter.embedding_backward, "embedding_dense_backward"),
    **_rows(LEAVE, index.nonzero, "nonzero"),
    **_rows(LEAVE, index.nonzero_static, "nonzero_static"),
    **_rows(LEAVE, index.distinct, "_unique _unique2 unique_dim unique_consecutive unique_dim_consecutive"),
    **_rows(LEAVE, index.masked_index, "_unsafe_masked_index"),
    **_rows(LEAVE, scatter.masked_index_put, "_unsafe_masked_index_put_accumulate"),
    # bags of rows: S(bag) = union of S(index) | S(row) | S(weight) over the bag, | S(offsets)
    **_rows(LEAVE, bag.forward, "_embedding_bag _embedding_bag_forward_only"),
    **_rows(LEAVE, bag.backward, "_embedding_bag_backward _embedding_bag_dense_backward"),
    **_rows(LEAVE, bag.weights_backward, "_embedding_bag_per_sample_weights_backward"),
    # -- element by element: S(out) = union of S(operands); an exact 0 cuts its partner
    **_rows(POINT, pointwise.mul, "mul bitwise_and logical_and __and__"),
    **_rows(POINT, pointwise.either, "bitwise_or logical_or __or__"),
    **_rows(POINT, pointwise.add, "add"),
    **_rows(POINT, pointwise.pow_, "pow"),
    **_rows(POINT, pointwise.addcmul, "addcmul"),
    **_rows(POINT, pointwise.fill, "fill"),
    **_rows(POINT, pointwise.div, "div"),
    **_rows(POINT, pointwise.heaviside, "heaviside"),
    **_rows(POINT, pointwise.join, "sub rsub lerp addcdiv maximum minimum dropout native_dropout "
            "masked_scale real imag complex polar _to_cpu nan_to_num clamp threshold prelu "
            "_prelu_kernel native_dropout_backward_mask leaky_relu hardswish hardsigmoid celu "
            "softshrink hardshrink floor_divide gcd lcm "
            "binary_cross_entropy_with_logits_backward _add_relu _standard_gamma_grad gelu softplus mish "
            "xlogy isinf log_sigmoid_forward"),
    **_rows(POINT, pointwise.bounded, "hardtanh"),
    **_rows(POINT, pointwise.bounded_backward, "hardtanh_backward"),
    **_rows(POINT, pointwise.hardshrink_backward, "hardshrink_backward"),
    **_rows(LEAVE, pointwise.rrelu, "rrelu_with_noise"),
    **_rows(POINT, pointwise.prelu_backward, "_prelu_kernel_backward"),
    **_rows(POINT, pointwise.sampled, "normal bernoulli"),
    **_rows(LEAVE, pointwise.glu, "glu"),
    **_rows(LEAVE, pointwise.glu_backward, "glu_backward"),
    **_rows(POINT, pointwise.grad_of, "gelu_backward silu_backward sigmoid_backward tanh_backward "
            "threshold_backward leaky_relu_backward elu_backward softplus_backward hardswish_backward "
            "hardsigmoid_backward mish_backward logit_backward log_sigmoid_backward "
            "native_dropout_backward softshrink_backward mse_loss_backward "
            "smooth_l1_loss_backward huber_loss_backward binary_cross_entropy_backward "
            "soft_margin_loss_backward rrelu_with_noise_backward"),
    # -- reductions: S(out) = union over the reduced dims
    **_rows(LEAVE, reduce.over, "sum mean nansum prod amax amin any all logsumexp std var "
            "linalg_vector_norm norm count_nonzero hash_tensor"),
    **_rows(LEAVE, reduce.trace, "trace"),
    **_rows(LEAVE, reduce.several, "var_mean std_mean aminmax _aminmax"),
    # the place of an element: the same, but nothing where there is one place only
    **_rows(LEAVE, reduce.where, "argmax argmin"),
    **_rows(LEAVE, reduce.chosen, "max min median nanmedian mode kthvalue"),
    **_rows(LEAVE, reduce.across, "_fft_r2c _fft_c2r _fft_c2c"),
    **_rows(LEAVE, segment.forward, "segment_reduce"),
    **_rows(LEAVE, segment.backward, "_segment_reduce_backward"),
    **_rows(LEAVE, reduce.renorm, "renorm"),
    **_rows(LEAVE, reduce.one_dim, "_softmax _log_softmax _safe_softmax"),
    **_rows(LEAVE, reduce.ordered, "sort topk argsort"),
    **_rows(LEAVE, reduce.softmax_backward, "_softmax_backward_data _log_softmax_backward_data"),
    **_rows(LEAVE, reduce.running, "cumsum cumprod cummax cummin logcumsumexp"),
    **_rows(LEAVE, reduce.norm_each, "_foreach_norm"),
    **_rows(LEAVE, reduce.whole, "histc histogram _histogramdd_bin_edges _histogramdd_from_bin_cts "
            "_histogramdd_from_bin_tensors dist allclose"),
    **_rows(LEAVE, reduce.rows, "multinomial"),
    **_rows(LEAVE, reduce.searched, "searchsorted bucketize isin"),
    **_rows(LEAVE, reduce.whole, "equal _local_scalar_dense item _is_all_true "
            "_is_any_true"),
    # samplers that draw as often as the values ask for: what the generator yields next depends on them
    **_rows(LEAVE, reduce.whole, "poisson binomial _standard_gamma _sample_dirichlet"),
    # -- matrices: S(out) = union over the matrix, but where a factorisation goes from left to right, reads
    # one triangle, or solves each column by itself
    **_rows(LEAVE, linalg.matrices, "_linalg_svd linalg_inv_ex linalg_eig _linalg_eigvals _linalg_det "
            "_linalg_slogdet linalg_matrix_exp"),
    **_rows(LEAVE, linalg.cholesky, "linalg_cholesky_ex cholesky"),
    **_rows(LEAVE, linalg.lu, "linalg_lu linalg_lu_factor_ex"),
    **_rows(LEAVE, linalg.lu_unpack, "lu_unpack"),
    **_rows(LEAVE, linalg.qr, "linalg_qr geqrf"),
    **_rows(LEAVE, linalg.householder_product, "linalg_householder_product"),
    **_rows(LEAVE, linalg.ormqr, "ormqr"),
    **_rows(LEAVE, linalg.from_triangle, "_linalg_eigh linalg_ldl_factor_ex linalg_pinv"),
    **_rows(LEAVE, linalg.cholesky_inverse, "cholesky_inverse"),
    **_rows(LEAVE, linalg.solve, "_linalg_solve_ex"),
    **_rows(LEAVE, linalg.solve_triangular, "linalg_solve_triangular triangular_solve"),
    **_rows(LEAVE, linalg.cholesky_solve, "cholesky_solve _cholesky_solve_helper"),
    **_rows(LEAVE, linalg.lu_solve, "linalg_lu_solve"),
    **_rows(LEAVE, linalg.ldl_solve, "linalg_ldl_solve"),
    **_rows(LEAVE, linalg.lstsq, "linalg_lstsq"),
    **_rows(LEAVE, linalg.cross, "linalg_cross"),
    # -- products: S(out[i, j]) = union over k of S(A[i, k]) | S(B[k, j]) where neither factor is 0
    **_rows(LEAVE, matmul.mm, "mm bmm _int_mm"),
    **_rows(LEAVE, matmul.linear, "linear"),
    **_rows(LEAVE, matmul.addmm, "addmm baddbmm addbmm _addmm_activation"),
    **_rows(LEAVE, matmul.mv, "mv"),
    **_rows(LEAVE, matmul.addmv, "addmv"),
    **_rows(LEAVE, matmul.dot, "dot vdot"),
    **_rows(LEAVE, matmul.ger, "ger outer addr"),
    **_rows(LEAVE, matmul.scaled_mm, "_scaled_mm"),
    # rows of group g times matrix g: S(row) | S(matrices) | S(where groups end)
    **_rows(LEAVE, matmul.grouped_mm, "_grouped_mm"),
    **_rows(LEAVE, matmul.distances, "_cdist_forward _euclidean_dist"),
    **_rows(LEAVE, matmul.distances_backward, "_cdist_backward"),
    **_rows(LEAVE, matmul.pairs, "_pdist_forward"),
    **_rows(LEAVE, matmul.pairs_backward, "_pdist_backward"),
    **_rows(LEAVE, matmul.trilinear, "_trilinear"),
    # -- attention: S(q_i) | S(mask_i) | union of S(k_j) | S(v_j) over visible j
    **_rows(LEAVE, attention.forward, "scaled_dot_product_attention "
            "_scaled_dot_product_flash_attention_for_cpu "
            "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
            "_scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable"),
    **_rows(LEAVE, attention.backward, "_scaled_dot_product_flash_attention_for_cpu_backward "
            "_scaled_dot_product_flash_attention_backward "
            "_scaled_dot_product_efficient_attention_backward "
            "_scaled_dot_product_cudnn_attention_backward "
            "_scaled_dot_product_fused_attention_overrideable_backward"),
    **_rows(LEAVE, encoder.encoder_layer, "_transformer_encoder_layer_fwd"),
    **_rows(LEAVE, encoder.multi_head, "_native_multi_head_attention"),
    # -- recurrences: S(out[t]) = union of S(x[s]) over s <= t | S(first state) | S(weights)
    **_rows(LEAVE, recurrent.layer, "mkldnn_rnn_layer"),
    **_rows(LEAVE, recurrent.layer_backward, "mkldnn_rnn_layer_backward"),
    **_rows(LEAVE, recurrent.gpu_layers, "_cudnn_rnn miopen_rnn"),
    **_rows(LEAVE, recurrent.gpu_layers_backward, "_cudnn_rnn_backward miopen_rnn_backward"),
    **_rows(LEAVE, reduce.whole, "_cudnn_rnn_flatten_weight"),
    **_rows(LEAVE, recurrent.gpu_cell, "_thnn_fused_lstm_cell _thnn_fused_gru_cell "
            "_thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell_backward"),
    # -- convolutions: S(weight) | S(bias) | union over the window
    **_rows(LEAVE, conv.convolution, "convolution _convolution convolution_overrideable"),
    **_rows(LEAVE, conv.convolution_backward, "convolution_backward convolution_backward_overrideable"),
    # -- pools: union over the window (a maximum, and where it is: of all of it)
    **_rows(LEAVE, resample.resampled, "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"),
    **_rows(LEAVE, pool.max_pool, "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d "
            "adaptive_max_pool3d"),
    **_rows(LEAVE, pool.fractional, "fractional_max_pool2d fractional_max_pool3d"),
    # backward: union over the windows that hold the place | S(where the maximum was), cut by a zero gradient
    **_rows(LEAVE, resample.resampled_backward, "avg_pool2d_backward avg_pool3d_backward "
            "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward"),
    **_rows(LEAVE, pool.max_pool_backward, "max_pool2d_with_indices_backward "
            "max_pool3d_with_indices_backward adaptive_max_pool2d_backward adaptive_max_pool3d_backward"),
    **_rows(LEAVE, pool.fractional_backward, "fractional_max_pool2d_backward fractional_max_pool3d_backward"),
    **_rows(LEAVE, pool.max_unpool, "max_unpool2d max_unpool3d"),
    # -- resampling: union of the places that weigh in; backward the other way round
    **_rows(MOVE, resample.resampled, "upsample_nearest1d upsample_nearest2d upsample_nearest3d "
            "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"),
    **_rows(LEAVE, resample.resampled, "upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
            "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa"),
    **_rows(LEAVE, resample.resampled_backward, "upsample_nearest1d_backward upsample_nearest2d_backward "
            "upsample_nearest3d_backward _upsample_nearest_exact1d_backward "
            "_upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward "
            "upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward "
            "upsample_bicubic2d_backward _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward "
            "_upsample_lanczos2d_aa_backward reflection_pad1d_backward reflection_pad2d_backward "
            "reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward "
            "replication_pad3d_backward"),
    **_rows(LEAVE, resample.col2im, "col2im"),
    # S(grid) | union of the places that its values point at; backward S(grid) goes to all of the plane
    **_rows(LEAVE, resample.grid_sampler, "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler"),
    **_rows(LEAVE, resample.grid_sampler_backward, "grid_sampler_2d_backward grid_sampler_3d_backward "
            "cudnn_grid_sampler_backward"),
    # -- normalisations: statistics couple the normalised elements
    **_rows(LEAVE, norm.layer_norm, "native_layer_norm"),
    **_rows(LEAVE, norm.layer_norm_backward, "native_layer_norm_backward"),
    **_rows(LEAVE, norm.fused_rms_norm, "_fused_rms_norm"),
    **_rows(LEAVE, norm.rms_norm, "rms_norm"),
    **_rows(LEAVE, norm.fused_rms_norm_backward, "_fused_rms_norm_backward"),
    **_rows(LEAVE, norm.batch_norm, "native_batch_norm _native_batch_norm_legit "
            "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update "
            "cudnn_batch_norm"),
    **_rows(LEAVE, norm.batch_norm_backward, "native_batch_norm_backward batch_norm_backward "
            "cudnn_batch_norm_backward"),
    **_rows(LEAVE, norm.group_norm, "native_group_norm"),
    **_rows(LEAVE, norm.group_norm_backward, "native_group_norm_backward"),
    **_rows(LEAVE, norm.weight_norm, "_weight_norm_interface"),
    **_rows(LEAVE, norm.weight_norm_backward, "_weight_norm_interface_backward"),
    # -- losses: readouts when the target is a verbatim label
    **_rows(READ, loss.nll_loss, "nll_loss_forward nll_loss2d_forward"),
    **_rows(READ, loss.chunked, "_linear_cross_entropy_batch_chunked_no_reduction"),
    **_rows(READ, loss.chunked_sum, "_linear_cross_entropy_batch_chunked"),
    **_rows(LEAVE, loss.nll_loss_backward, "nll_loss_backward nll_loss2d_backward"),
    **_rows(LEAVE, loss.mse_like, "mse_loss smooth_l1_loss huber_loss binary_cross_entropy l1_loss "
            "binary_cross_entropy_with_logits soft_margin_loss"),
    # losses of a whole row or sequence: S(row) | S(target) | S(weights)
    **_rows(LEAVE, loss.margin, "multi_margin_loss multilabel_margin_loss_forward"),
    **_rows(LEAVE, loss.margin_backward, "multi_margin_loss_backward multilabel_margin_loss_backward"),
    **_rows(LEAVE, loss.ctc, "_ctc_loss"),
    **_rows(LEAVE, loss.ctc_backward, "_ctc_loss_backward"),
    # -- optimizers: parameter i and its state depend on everything of parameter i
    **_rows(LEAVE, optim.fused, "_fused_adam _fused_adamw _fused_sgd _fused_adagrad"),
    **_rows(LEAVE, optim.unscale, "_amp_foreach_non_finite_check_and_unscale"),
    **_rows(LEAVE, reduce.whole, "_amp_update_scale"),
}  # fmt: skip

POINTWISE = Rule(POINT, pointwise.join)
UNKNOWN = Rule(OPAQUE, fallback.opaque)


#: Namespaces that the names in the table are of. Elsewhere ``mul`` or ``rms_norm`` may be anything.
NAMESPACES = ("aten", "profiler", "torch_nn")


def functional_name(func: torch._ops.OpOverload) -> str:
    """``aten::_foreach_add_.List`` gives ``add``: the row that a variant shares with its functional form."""
    qualified: str = func._schema.name
    namespace, name = qualified.split("::")
    if namespace not in NAMESPACES:
        return qualified
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    if name in TABLE:
        return name
    return name.removeprefix("_foreach_")


def registered_name(func: torch._ops.OpOverload | torch._ops.HigherOrderOperator) -> str:
    """The row of a rule that a user registered: ``mylib.norm.default``, ``higher_order.cond``."""
    return f"{func.namespace}.{func}" if isinstance(func, torch._ops.HigherOrderOperator) else str(func)


def find(func: torch._ops.OpOverload | torch._ops.HigherOrderOperator) -> Rule:
    """The rule of an op: its row, else the pointwise rule by tag, else unknown."""
    row = TABLE.get(registered_name(func))
    if isinstance(func, torch._ops.HigherOrderOperator):
        return row or UNKNOWN
    row = row or TABLE.get(functional_name(func))
    if row is not None:
        return row
    foreach = func._schema.name.startswith("aten::_foreach_")
    return POINTWISE if fallback.pointwise_tag(func) or foreach else UNKNOWN
