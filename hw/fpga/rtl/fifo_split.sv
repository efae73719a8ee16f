// A FIFO of DEPTH words of which the last TAIL stand in a memory of their own: the rest fills whole block RAMs.
module dp_fifo_split #(
  parameter int WIDTH = 8,
  parameter int DEPTH = 2100,
  parameter int TAIL = 52
) (
  input  logic clk, rst,
  input  logic [WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  logic [WIDTH-1:0] data;
  logic valid, ready;
  dp_fifo #(.WIDTH(WIDTH), .DEPTH(DEPTH - TAIL)) head (.clk, .rst, .s_data, .s_valid, .s_ready, .m_data(data), .m_valid(valid), .m_ready(ready));
  dp_fifo #(.WIDTH(WIDTH), .DEPTH(TAIL)) tail (.clk, .rst, .s_data(data), .s_valid(valid), .s_ready(ready), .m_data, .m_valid, .m_ready);
endmodule
