// How a kernel that makes lists keeps the dense weights: a row of them is 1 at the tokens of its list, else 0, and
// only what the list before it had is cleared. The binding is this part's.

@group(0) @binding(9) var<storage, read_write> weights: array<f32>;

fn set_weight(list_ix: u32, token: u32, weight: f32) {
  weights[list_ix * params.weight_stride + token] = weight;
}

fn clear_weight(list_ix: u32, at: u32) {
  set_weight(list_ix, indices[list_ix * params.list_stride + at], 0.0);
}

// Clears what the list has now; a barrier must follow before it is replaced.
fn clear_weights(lane: u32, list_ix: u32) {
  if (params.clears_previous == 1u) {
    let length = lengths[list_ix];
    if (lane < length) { clear_weight(list_ix, lane); }
    if (lane + WG < length) { clear_weight(list_ix, lane + WG); }
    if (length > 2u * WG) {
      for (var j = lane + 2u * WG; j < length; j += WG) { clear_weight(list_ix, j); }
    }
  }
}

// Length of the list that the weights hold now; 0 where they are all 0.
fn old_length(list_ix: u32) -> u32 {
  if (params.clears_previous == 0u) { return 0u; }
  return lengths[list_ix];
}

fn old_token(list_ix: u32, at: u32) -> u32 {
  if (at >= params.list_stride) { return 0u; }
  return indices[list_ix * params.list_stride + at];
}
