"""The only floor that speaks C: the driver library, its entry points, and a simulated twin."""
