"""Any `nn.Module`, seen from outside: copied, fed, traced, its operators known."""
