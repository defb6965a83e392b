"""What is read from compiled programs, against hand counts: collectives, loops, memory traffic, estimated cycles."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t0jax.plan import compiled, hlo

TURNS = 5


COLLECTIVES = {
    # On 8 devices, of 64 float32 a device: what each sends by the ring algorithm.
    "all-gather": (lambda x: jax.lax.all_gather(x, "d").sum(0), 7 * 256),
    "all-reduce": (lambda x: jax.lax.psum(x, "d"), 2 * 256 * 7 / 8),
    "reduce-scatter": (
        lambda x: jnp.tile(jax.lax.psum_scatter(x, "d", tiled=True), 8),
        256 * 7 / 8,
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "d", [(i, (i + 1) % 8) for i in range(8)]),
        256,
    ),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x.reshape(8, 8), "d", 0, 0).reshape(64),
        256 * 7 / 8,
    ),
}


def read(function):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    where = NamedSharding(mesh, P("d"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False)
    x = jax.ShapeDtypeStruct((8 * 64,), jnp.float32, sharding=where)
    return hlo.traffic(jax.jit(mapped).lower(x).compile().as_text())


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_collectives_count_once_outside_a_loop_and_each_turn_inside(kind):
    one, size = COLLECTIVES[kind]

    def program(x):
        def turn(x, _):
            return one(jnp.sin(x)), None

        return one(jax.lax.scan(turn, x, length=TURNS)[0] * 2)

    found = read(program)
    assert found.sent() == {kind: pytest.approx((TURNS + 1) * size)}
    assert {(c.group, c.times) for c in found.collectives} <= {(8, 1), (8, TURNS), (8, TURNS + 1)}
    assert found.unknown_loops == 0


def test_a_loop_in_a_loop_multiplies():
    def program(x):
        def inner(x, _):
            return jax.lax.psum(jnp.sin(x), "d"), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=3)[0] * 2, None

        return jax.lax.scan(outer, x, length=TURNS)[0]

    assert read(program).sent() == {"all-reduce": pytest.approx(3 * TURNS * 2 * 256 * 7 / 8)}


TPU_TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=16

%fused.1 (p.1: f32[8,4]) -> f32[64,4] {
  %p.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %ag.1 = f32[64,4]{1,0:T(8,128)} all-gather(%p.1), channel_id=5, replica_groups=[2,8]<=[16], dimensions={0}
}

%fused.2 (p.2: f32[8,4]) -> f32[64,4] {
  %p.2 = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %ag.2 = f32[64,4]{1,0:T(8,128)} all-gather(%p.2), channel_id=5, replica_groups=[2,8]<=[16], dimensions={0}
}

%all-reduce-scatter.3 (p.3: f32[32]) -> f32[8] {
  %p.3 = f32[32]{0:T(128)} parameter(0)
  %ar.3 = f32[32]{0:T(128)} all-reduce(%p.3), channel_id=6, replica_groups=mesh['a'=4,'b'=4] {'b'}, to_apply=%add
  %zero.3 = s32[] constant(0)
  ROOT %ds.3 = f32[8]{0:T(128)} dynamic-slice(%ar.3, %zero.3), dynamic_slice_sizes={8}
}

%body (s: (u32[], f32[8,4], f32[32])) -> (u32[], f32[8,4], f32[32]) {
  %two = u32[] constant(2)
  %s = (u32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, /*index=2*/f32[32]{0:T(128)}) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %y = f32[32]{0:T(128)} get-tuple-element(%s), index=2
  %next = u32[] add(%i, %two)
  %start = f32[64,4]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%fused.1, config={"estimated_cycles":"100"}
  %done = f32[64,4]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%fused.2, config={"estimated_cycles":"20"}
  %rs = f32[8]{0:T(128)} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.3
  %cp = (f32[8,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)}, u32[]) collective-permute-start(%x), channel_id=7
  %cpd = f32[8,4]{1,0:T(8,128)} collective-permute-done(%cp)
  ROOT %t = (u32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) tuple(%next, %cpd, %y)
}

%condition (c: (u32[], f32[8,4], f32[32])) -> pred[] {
  %limit = u32[] constant(9)
  %c = (u32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) parameter(0)
  %j = u32[] get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[8,4], b: f32[32]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %b = f32[32]{0:T(128)} parameter(1)
  %one = u32[] constant(1)
  %from = u32[] copy(%one)
  %state = (u32[], f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) tuple(%from, %a, %b)
  %loop = (u32[], f32[8,4]{1,0:T(8,128)}, f32[32]{0:T(128)}) while(%state), condition=%condition, body=%body
  ROOT %out = f32[8,4]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
"""As libtpu writes: no trip counts, gathers spread over fusions, reduce-scatters in disguise, VMEM as `S(1)`."""


def test_what_a_tpu_compiler_writes_is_read():
    found = hlo.traffic(TPU_TEXT)
    turns = 4  # 1, 3, 5, 7
    assert found.sent() == {
        "all-gather": turns * 7 * 128,  # once, though two fusions carry it
        "reduce-scatter": turns * 128 * 3 / 4,
        "collective-permute": turns * 128,
    }
    assert found.cycles == turns * 120
    # Both fusions read x and write to VMEM; rs reads y and writes 8 numbers; permute, its buffers; add, two and one.
    a_turn = 128 + 128 + (128 + 32) + (128 + 128 + 128 + 4) + 12
    assert found.memory_bytes == turns * a_turn + 8


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}",
        "[4,4]<=[16]",
        "mesh['a'=4,'b'=2,'c'=2] {'b','c'}",
        "mesh['a'=2,'b'=4,'c'=2], device_ids=([4,4]T(1,0)) {'b'}",
        "mesh['a'=16] {'a':(2)4}",
    ],
)
def test_groups_are_read_however_they_are_written(groups):
    text = TPU_TEXT.replace("mesh['a'=4,'b'=4] {'b'}", groups)
    assert "reduce-scatter" in hlo.traffic(text).sent()
    assert {c.group for c in hlo.traffic(text).collectives if c.kind == "reduce-scatter"} == {4}


def test_a_loop_that_cannot_be_read_is_said():
    text = TPU_TEXT.replace("direction=LT", "direction=EQ")
    assert hlo.traffic(text).unknown_loops == 1


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[4,1024,2]{2,1,0:T(8,128)(2,1)}", 4 * 1024 * 2 * 2),
        ("bf16[4,1024,2]{2,1,0:T(8,128)(2,1)S(1)}", 0),
        ("(f32[3]{0}, s8[5]{0}, /*index=2*/pred[])", 12 + 5 + 1),
        ("f8e4m3fn[16]{0}", 16),
        ("token[]", 0),
    ],
)
def test_shapes_have_their_bytes(shape, size):
    assert hlo.array_bytes(shape) == size


def test_memory_that_a_compiler_refuses_is_read():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm. Exceeded by 8.75G."
    assert compiled.needed_memory(said) == pytest.approx(24.5 * 2**30)
    other = "RESOURCE_EXHAUSTED: ... memory required for HLO temporaries (512.00G) exceeds available HBM (95.74G)."
    assert compiled.needed_memory(other) == 512 * 2**30
    assert compiled.needed_memory("INTERNAL: something else") is None
