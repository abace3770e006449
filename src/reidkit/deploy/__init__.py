"""What happens to a bundle before it is used: taking foreign models in, verification, benchmarks. No torch."""
