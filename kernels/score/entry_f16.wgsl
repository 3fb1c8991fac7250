// How an entry of the lookup table is kept in workgroup memory: as f16, saturated at its largest finite value. In place
// of `entry_f32.wgsl` where the device has f16 and the caller asked for it.

enable f16;

alias Entry = f16;

fn entry_of(value: f32) -> Entry {
  let is_finite = (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
  return f16(select(value, clamp(value, -65504.0, 65504.0), is_finite));
}
