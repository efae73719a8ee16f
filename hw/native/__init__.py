"""A compiled model that runs by itself: kernels, weights and a plan in one folder, with a runner of this project and no library of TVM's."""
