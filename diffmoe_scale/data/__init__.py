"""From tar shards to batches.

shards/    where each sample lies, on disks and behind URLs
order/     which sample comes when
features/  latents and caption features computed before training
reading/   samples and batches
"""
