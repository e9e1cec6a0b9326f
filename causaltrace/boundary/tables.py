"""numpy's functions by what they do to labels. What is in none of these tables, nor has a row of its own in
``rows``, is named in the report: all that went in may have come out."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Only move elements: they run on the numbers of the elements to learn where each goes.
MOVED = _names(
    "concatenate stack vstack hstack dstack column_stack roll flip fliplr flipud rot90 tile repeat "
    "reshape ravel transpose swapaxes moveaxis rollaxis squeeze expand_dims broadcast_to "
    "broadcast_arrays atleast_1d atleast_2d atleast_3d split array_split hsplit vsplit dsplit diag "
    "diagonal diagflat tril triu copy matrix_transpose unstack block sliding_window_view pad resize "
    "linalg.diagonal linalg.matrix_transpose fft.fftshift fft.ifftshift"
)
#: Of these, those whose first argument is a list of arrays.
SEVERAL = _names("concatenate stack vstack hstack dstack column_stack")
#: Those whose first argument is lists of lists of arrays.
NESTED = _names("block")
#: Those whose arguments are arrays, any number of them.
VARIADIC = _names("broadcast_arrays atleast_1d atleast_2d atleast_3d")
#: Python code of numpy's own, which calls what is followed.
PARTS = _names(
    "diff gradient ediff1d outer kron cross isclose allclose array_equal array_equiv flatnonzero "
    "argwhere put_along_axis angle real imag trapezoid unwrap meshgrid ix_ select append insert delete "
    "fix digitize apply_along_axis apply_over_axes tensordot cov corrcoef vander nancumprod nancumsum "
    "nan_to_num astype extract piecewise iscomplex isreal isneginf isposinf real_if_close sinc i0 "
    "sort_complex intersect1d setdiff1d setxor1d union1d trim_zeros poly polyadd polyder polydiv "
    "polyfit polyint polymul polysub polyval roots geomspace logspace linalg.norm linalg.cholesky "
    "linalg.cond linalg.cross linalg.det linalg.eig linalg.eigh linalg.eigvals linalg.eigvalsh "
    "linalg.inv linalg.lstsq linalg.matmul linalg.matrix_norm linalg.matrix_power linalg.matrix_rank "
    "linalg.multi_dot linalg.outer linalg.pinv linalg.qr linalg.slogdet linalg.solve linalg.svd "
    "linalg.svdvals linalg.tensordot linalg.tensorinv linalg.tensorsolve linalg.trace linalg.vecdot "
    "linalg.vector_norm fft.fft fft.fft2 fft.fftn fft.hfft fft.ifft fft.ifft2 fft.ifftn fft.ihfft "
    "fft.irfft fft.irfft2 fft.irfftn fft.rfft fft.rfft2 fft.rfftn cumulative_sum cumulative_prod"
)
#: Of these, those that call functions of the program: labels may come in there.
CALLING = _names("apply_along_axis apply_over_axes piecewise")
#: See no values.
FREE = _names(
    "zeros_like ones_like empty_like result_type can_cast min_scalar_type shares_memory "
    "may_share_memory shape ndim size iscomplexobj isrealobj common_type diag_indices_from "
    "tril_indices_from triu_indices_from einsum_path"
)
#: Over the dims ``axis`` (None: all).
OVER = _names(
    "sum prod max min amax amin all any mean std var count_nonzero argmax argmin median percentile "
    "quantile ptp nansum nanprod nanmax nanmin nanmean nanstd nanvar nanmedian nanpercentile "
    "nanquantile nanargmax nanargmin"
)
#: Along ``axis`` (None: of the flattened array).
ALONG = _names("cumsum cumprod")
#: Another order of what lies along ``axis``.
ORDERED = _names("sort argsort partition argpartition")
#: Everything into everything.
MIXED = _names(
    "unique unique_values unique_counts unique_inverse unique_all histogram histogram2d histogramdd "
    "histogram_bin_edges bincount lexsort packbits unpackbits"
)
#: Of these, those with results of a shape that depends on values.
SHAPED = _names("unique unique_values unique_counts unique_inverse unique_all bincount")
#: The arguments that functions write to.
WRITING = {"copyto": "dst", "putmask": "a", "place": "arr", "put": "a", "fill_diagonal": "a"}
