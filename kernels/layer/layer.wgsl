// The shape of the layer, the step's Params, and how workgroups and lists are numbered.
// First part of every kernel of a step.
//
// A "list" is one (batch, query head, row): list_ix = (b * HEADS + h) * n_rows + r.
// A "kv" is one (batch, KV head): kv = b * KV_HEADS + h_kv.

override BATCH: u32;
override HEADS: u32;
override KV_HEADS: u32;
override SUBVECTORS: u32;      // M
override CENTROIDS: u32;       // C
override SUB_WIDTH: u32;       // d = D / M
override CENTROID_WIDTH: u32;  // columns of a centroid: d, or d + 1 for metric "ip"

const MAX_ROWS = 64u;

// What one query row asks for, already resolved by the host: plain ranges, no rules.
struct Row {
  n_tokens: u32,      // tokens that the row sees
  n_sink: u32,        // tokens 0 .. n_sink are listed
  n_heavy: u32,       // so many candidates are picked; there are at least as many
  window_begin: u32,  // tokens window_begin .. n_tokens are listed
  cand_begin: u32,    // candidates cand_begin .. cand_end, counted in coded tokens
  cand_end: u32,
  list_length: u32,
  n_short: u32,       // so many are taken by score, to choose n_heavy of them; n_heavy where nothing is re-ranked
}

struct Params {
  n_coded: u32,        // coded tokens, the new ones included; coded token i is token init_offset + i
  n_new: u32,          // keys coded in this step: the last n_new coded tokens
  first_new_key: u32,  // position among the step's new keys of the first coded one
  n_new_keys: u32,     // new keys per kv in the key input
  init_offset: u32,
  coded_stride: u32,   // rows of codes and scores start at multiples of this
  heavy_stride: u32,   // rows of heavy tokens
  list_stride: u32,    // rows of indices
  weight_stride: u32,  // rows of weights
  n_rows: u32,
  n_beside: u32,       // keys that the kernel of the lists codes beside them: n_new or 0
  clears_previous: u32,  // 1: indices and lengths hold the lists that weights hold; 0: weights are 0
  post_begin: u32,       // the postings hold the coded tokens post_begin .. post_end
  post_end: u32,
  key_stride: u32,       // tokens from one kv's keys and values to the next
  attended: u32,         // the most tokens that a list attends to, or the distance of rows of a shortlist
  @align(16) rows: array<Row, MAX_ROWS>,
}

@group(0) @binding(0) var<uniform> params: Params;

// Workgroups form one line, folded into y where it is longer than 65,535.
fn job_ix(workgroup_id: vec3u, num_workgroups: vec3u) -> u32 {
  return workgroup_id.y * num_workgroups.x + workgroup_id.x;
}

fn n_lists() -> u32 {
  return BATCH * HEADS * params.n_rows;
}

// The row of a list; in the common case of one row, at an address that the compiler knows.
fn row_of_list(list_ix: u32) -> Row {
  if (params.n_rows == 1u) { return params.rows[0]; }
  return params.rows[list_ix % params.n_rows];
}

fn kv_of_list(list_ix: u32) -> u32 {
  let query_head = list_ix / params.n_rows;
  return (query_head / HEADS) * KV_HEADS + (query_head % HEADS) / (HEADS / KV_HEADS);
}
