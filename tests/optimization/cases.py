"""Cases that several tests share."""

import torch

# Four rows: full, short, with a gap, empty.
RAGGED = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])

QUADRANTS = [  # ratio, advantage, loss, gradient; epsilon = .2
    (1.5, 1.0, -1.2, 0.0),  # good and already likelier: no further
    (0.5, 1.0, -0.5, -0.5),  # good and less likely: pull up
    (1.5, -1.0, 1.5, 1.5),  # bad and likelier: push down, without limit
    (0.5, -1.0, 0.8, 0.0),  # bad and already less likely: no further
    (1.1, 1.0, -1.1, -1.1),  # inside the interval
    (1.0, 2.0, -2.0, -2.0),  # before the first update: minus the advantage
]
