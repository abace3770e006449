"""torchmetrics, the oracle of these tests, imports torchvision wherever it is installed."""

from reidkit.models.timm_backbone import import_torchvision

import_torchvision()
