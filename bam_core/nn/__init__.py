"""The model: a dense decoder, and the same decoder with attention and FFN experts.

Reading order: `layers` (norm, rotary, FFN, vocabulary), `attention`, `routing` (a router is a pure
function), `moa` (mixture of attention), `moe` (FFN experts), `shared` (what experts share), `block`, `lm`; then
`losses`, `rms` and `grouped` (what a CPU computes faster), `products`, `decode` (the model laid out for inference),
`generate` and `costs`.

The suffix of a tensor's name is its logical shape:

    B batch   T query position   S key position   N tokens (B*T)   L layers   V vocabulary
    D d_model   F hidden width of one expert's FFN   C channels of a head   X those of a value head
    R rows of any matrix, or channels of a head that rotate
    H query heads   G key/value heads   E experts   K experts chosen for a token

What public families have beside the plain block (biases, other norms, activations, windows, soft caps) is in the same
modules, by fields of `config.ModelConfig`; faster paths that do not know a field leave it to the plain one.

Every matrix is stored with D last: one row is one channel (of a query, a key, a hidden neuron) as a vector of
model space. Experts are stacked along a leading E, so the folded matrix of all experts is a view,
`[E, R, D] -> [E*R, D]`. Reading is `x @ w.T`, writing back is `h @ w`.
"""
