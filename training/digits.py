"""Handwritten digits (MNIST-5k): a small convolutional net on images of 28 × 28 grey values between 0 and 1."""

import torch
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample


class Digits(nn.Module):
    def __init__(self, params):
        super().__init__()
        width = params["channels"]
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # 14 × 14
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # 7 × 7
            *(nn.Flatten(), nn.Dropout(params["dropout"]), nn.Linear(2 * width * 49, 64), nn.ReLU()),
            nn.Linear(64, params["classes"]),
        )

    def forward(self, columns):
        return self.layers(columns["image"] - 0.13)  # the mean grey value


def model(params):
    return Digits(params)


def moved(images, amount):  # shifted by up to `amount` of half the image and slightly turned: nobody writes twice alike
    angle = (torch.rand(len(images), device=images.device) - 0.5) * 4 * amount
    shift = (torch.rand(len(images), 2, device=images.device) - 0.5) * 2 * amount
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    grid = affine_grid(torch.cat([turn, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def train(worker, params):
    net = model(params).to(worker.device)
    fast = worker.prepare(net)
    optimizer = torch.optim.AdamW(net.parameters(), params["learning_rate"], weight_decay=params["weight_decay"])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, params["decay"])
    for _ in worker.epochs({"model": net, "optimizer": optimizer, "schedule": schedule}):
        net.train()
        for batch in worker.batches("train", batch_size=params["batch_size"]):
            images = moved(batch.features["image"], params["movement"])
            optimizer.zero_grad()
            cross_entropy(fast({"image": images}), batch.label).backward()
            optimizer.step()
        schedule.step()
        worker.report(worker.measure(net.eval(), "validation"))
