// In place of `weights_on.wgsl` where no weights are written.

fn set_weight(list_ix: u32, token: u32, weight: f32) {}

fn clear_weights(lane: u32, list_ix: u32) {}
