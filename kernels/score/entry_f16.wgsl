// Entries of the lookup table as f16: half the workgroup memory of `entry_f32.wgsl`, opt-in where the device has f16.
//
// A list's entries share a scale, a power of two: 1 while the largest finite magnitude lies between a quarter and
// 65,504, else what brings it to 2^14 .. 2^15. So no finite entry saturates, small entries do not all vanish, and the
// order of a list's scores stays. A table that needs a scale is filled twice, which is rare in real models.
// Workgroup memory: 8 bytes.

enable f16;

alias Entry = f16;

const HALF_MAX_BITS = 0x477fe000u;   // 65,504
const QUARTER_BITS = 0x3e800000u;
const INFINITE_BITS = 0x7f800000u;

var<workgroup> wg_largest: atomic<u32>;  // magnitude of the largest finite entry, as bits; 0 between two tables
var<workgroup> wg_scale: f32;
var<private> entry_scale: f32;

fn begin_entries() {
  entry_scale = 1.0;
}

// Infinite and NaN entries stay what they are. While the scale is not chosen, an entry beyond the range is clamped: it
// is filled again.
fn entry_of(value: f32) -> Entry {
  let is_finite = (bitcast<u32>(value) & INFINITE_BITS) != INFINITE_BITS;
  return f16(select(value, clamp(value * entry_scale, -65504.0, 65504.0), is_finite));
}

fn note_entry(magnitude: u32) {
  if (entry_scale == 1.0 && magnitude < INFINITE_BITS && magnitude > atomicLoad(&wg_largest)) {
    atomicMax(&wg_largest, magnitude);
  }
}

// Chooses the list's scale when all entries are noted; true if the table must be filled again. In uniform control flow
// only; begins and ends with a barrier.
fn choose_scale(lane: u32) -> bool {
  workgroupBarrier();
  if (lane == 0u) {
    let largest = atomicLoad(&wg_largest);
    atomicStore(&wg_largest, 0u);
    var scale = 1.0;
    if (largest != 0u && (largest < QUARTER_BITS || largest > HALF_MAX_BITS)) {
      // 2^(14 - e) for a magnitude from 2^e on; the exponent's bits of a power of two.
      scale = bitcast<f32>((min(268u - (largest >> 23u), 253u)) << 23u);
    }
    wg_scale = scale;
  }
  let scale = workgroupUniformLoad(&wg_scale);
  entry_scale = scale;
  return scale != 1.0;
}
