"""Income above 50,000 USD (UCI Adult): a small network with a fairness penalty; sex and race are not inputs."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy


class Income(nn.Module):
    def __init__(self, params):
        super().__init__()
        sizes = params["columns"]  # name to number of categories; 0 is a number
        self.numbers = [name for name, size in sizes.items() if size == 0]
        self.codes = nn.ModuleDict({name: nn.Embedding(size, min(8, size)) for name, size in sizes.items() if size})
        self.register_buffer("mean", torch.zeros(len(self.numbers)))
        self.register_buffer("scale", torch.ones(len(self.numbers)))
        width = len(self.numbers) + sum(code.embedding_dim for code in self.codes.values())
        hidden = [nn.Linear(width, params["width"]), nn.ReLU(), nn.Dropout(params["dropout"])]
        self.layers = nn.Sequential(*hidden, nn.Linear(params["width"], params["classes"]))

    def table(self, columns):  # amounts of money span five powers of ten
        return torch.log1p(torch.stack([columns[name] for name in self.numbers], 1).clamp(min=0))

    def forward(self, columns):
        numbers = (self.table(columns) - self.mean) / self.scale
        return self.layers(torch.cat([numbers, *(code(columns[name]) for name, code in self.codes.items())], 1))


def model(params):
    return Income(params)


def gap(values, rows, sex):  # between the sexes: the mean of `values` over `rows` (each 0 or 1)
    first, second = rows * (sex == 0), rows * (sex == 1)
    return ((values * first).sum() / first.sum().clamp(1) - (values * second).sum() / second.sum().clamp(1)).abs()


def train(worker, params):
    net = model(params).to(worker.device)
    table = torch.cat([net.table(batch.features) for batch in worker.batches("train", batch_size=8192, shuffle=False)])
    count, total, squares = worker.sum(torch.stack([torch.ones_like(table), table, table**2]).double().sum(1))
    net.mean.copy_(total / count)
    net.scale.copy_((squares / count - (total / count) ** 2).clamp(1e-12).sqrt())
    fast = worker.prepare(net)
    optimizer = torch.optim.AdamW(net.parameters(), params["learning_rate"], weight_decay=params["weight_decay"])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, params["decay"])
    for _ in worker.epochs({"model": net, "optimizer": optimizer, "schedule": schedule}):
        net.train()
        for batch in worker.batches("train", batch_size=params["batch_size"]):
            logits, sex, label = fast(batch.features), batch.sensitive["sex"], batch.label.float()
            chance = logits.softmax(1)[:, 1]
            odds = gap(chance, label, sex) + gap(chance, 1 - label, sex)
            unfair = params["odds_penalty"] * odds + params["rate_penalty"] * gap(chance, torch.ones_like(chance), sex)
            optimizer.zero_grad()
            (cross_entropy(logits, batch.label) + unfair).backward()
            optimizer.step()
        schedule.step()
        worker.report(worker.measure(net.eval(), "validation", sensitive="sex"))
