"""What does not hold yet, and why. A name that does hold fails its test until it is taken out here."""

from __future__ import annotations


def _by_name(reasons: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in reasons.items() for name in names.split()}


_MISSED = {
    "a copy that was made before the watch has no labels": """
        before.numpy_view before.numpy_copy before.python_list before.torch_copy before.float_copy
        before.derived before.torch_copy_indexed
    """,
    "a constructor or method that was looked up before the watch is not replaced": """
        before.torch_names memory.method_kept memory.base_method
    """,
    "a composite that reads values only to check them may raise": """
        branches.one_hot_error
    """,
    "the state of a generator is no tensor": """
        branches.sampler_draws branches.generator_state
    """,
    "a number that is kept beside the elements is not followed": """
        branches.quantized_scale
    """,
    "torch reads the values for its own text, callback or capsule": """
        scalars.shown files.logged memory.applied memory.dlpack_capsule
    """,
    "what is charged is not compared with a whole distribution": """
        scores.ignored_class
    """,
}
_DOUBTED = {
    "numpy arrays are not followed": """
        numpy_values.hash_uint64 numpy_values.hash_fnv numpy_values.float_bits numpy_values.frexp
        numpy_values.where numpy_values.clipped numpy_values.bits numpy_values.cumsum
        numpy_values.products numpy_values.ufunc_methods numpy_values.ufunc_out
        numpy_values.in_place numpy_values.sum_where numpy_values.structured numpy_values.objects
        numpy_values.masked numpy_values.complex_numbers numpy_values.vectorized
        numpy_values.packbits numpy_values.order numpy_values.linalg numpy_values.random_seed
        numpy_values.random_generator numpy_values.interpolated numpy_values.iterated
        numpy_values.copied_into numpy_values.strings numpy_values.joined numpy_values.subclasses
        numpy_values.stripped numpy_values.plain_view numpy_values.fromiter
        numpy_values.numpy_scalars numpy_tables.table numpy_tables.table_at_one numpy_tables.taken
        numpy_tables.add_at numpy_tables.maximum_at numpy_tables.bincount numpy_tables.unique
        numpy_tables.searchsorted numpy_tables.mask_assigned numpy_tables.places_assigned
        numpy_tables.put numpy_tables.isin numpy_tables.places numpy_tables.shape
        numpy_tables.selection_length numpy_tables.sliced numpy_tables.permuted
        numpy_tables.lexsorted numpy_tables.one_hot numpy_tables.folded numpy_tables.hashed_table
        numpy_tables.windows numpy_tables.pairs numpy_tables.applied before.numpy_scalars
        scores.target_blend_numpy scores.hashed_ratio scores.numpy_only
    """,
    "a copy of the process has all values that there are": """
        threads.forked
    """,
    "an earlier label that picks from a row is taken for a target": """
        scores.tilt_without_scale scores.gated_hint
    """,
}

#: Leaking programs that a watch calls clean, or fails on.
MISSED = _by_name(_MISSED)

#: Legal twins that it does not call clean.
DOUBTED = _by_name(_DOUBTED)
