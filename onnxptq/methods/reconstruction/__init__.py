"""Methods that need gradients. Only here and in export/ is torch imported."""
