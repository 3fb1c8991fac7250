// How an entry of the lookup table is kept in workgroup memory: as it is.

alias Entry = f32;

fn entry_of(value: f32) -> Entry {
  return value;
}
