"""One thread: the tests are small, and a sum in another order is another float."""

import torch

torch.set_num_threads(1)
