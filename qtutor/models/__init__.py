"""Any `nn.Module`, seen from outside: copy it, and know its operators."""
