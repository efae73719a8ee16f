// Stream width converter: beats of N_IN elements to beats of N_OUT elements of WIDTH bits, in order (element 0 in the low
// bits). One of the two must divide the other.
module dp_dwc #(
  parameter int WIDTH = 8,
  parameter int N_IN = 1,
  parameter int N_OUT = 2
) (
  input  logic clk, rst,
  input  logic [N_IN*WIDTH-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [N_OUT*WIDTH-1:0] m_data, output logic m_valid, input logic m_ready
);
  if (N_OUT > N_IN) begin : g_up
    localparam int R = N_OUT / N_IN;
    logic [$clog2(R)-1:0] at;
    assign s_ready = !m_valid || m_ready;
    always_ff @(posedge clk) begin
      if (s_valid && s_ready) m_data[at*N_IN*WIDTH +: N_IN*WIDTH] <= s_data;
      if (rst) begin
        at <= '0; m_valid <= 1'b0;
      end else begin
        if (m_ready) m_valid <= 1'b0;
        if (s_valid && s_ready) begin
          at <= at == $clog2(R)'(R-1) ? '0 : at + 1'b1;
          m_valid <= at == $clog2(R)'(R-1);
        end
      end
    end
  end else if (N_OUT < N_IN) begin : g_down
    localparam int R = N_IN / N_OUT;
    logic [$clog2(R)-1:0] at;
    logic [N_IN*WIDTH-1:0] hold;
    wire last = at == $clog2(R)'(R-1);
    assign s_ready = !m_valid || (m_ready && last);
    assign m_data = hold[N_OUT*WIDTH-1:0];
    always_ff @(posedge clk) begin
      if (s_valid && s_ready) hold <= s_data;
      else if (m_valid && m_ready) hold <= hold >> (N_OUT*WIDTH);
      if (rst) begin
        at <= '0; m_valid <= 1'b0;
      end else begin
        if (m_valid && m_ready) at <= last ? '0 : at + 1'b1;
        if (s_valid && s_ready) m_valid <= 1'b1;
        else if (m_ready && last) m_valid <= 1'b0;
      end
    end
  end else begin : g_same
    assign m_data = s_data;
    assign m_valid = s_valid;
    assign s_ready = m_ready;
  end
endmodule
