mod given;
mod order;
