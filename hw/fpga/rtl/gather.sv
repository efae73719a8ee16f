// Out channel i of a pixel is in channel INDEX[i]: slices, splits and shuffles, as wires. A beat is a whole pixel.
module dp_gather #(
  parameter int WIDTH = 8,
  parameter int N_IN = 4,
  parameter int N_OUT = 2,
  parameter logic [N_OUT*16-1:0] INDEX = '0
) (
  input  logic clk, rst,
  input  logic [N_IN*WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [N_OUT*WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  for (genvar i = 0; i < N_OUT; i++) begin : g
    assign m_data[i*WIDTH +: WIDTH] = s_data[INDEX[i*16 +: 16]*WIDTH +: WIDTH];
  end
  assign m_valid = s_valid;
  assign s_ready = m_ready;
endmodule
