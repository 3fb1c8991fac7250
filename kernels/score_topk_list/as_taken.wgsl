// Where the heavy tokens of a list by cells are those of the best scores: what was taken stays as it is. In place of it,
// `re_ranked.wgsl` chooses among them.

fn settle_heavy(lane: u32, list_ix: u32, row: Row) {}
